"""The public entry points: Prefect flows."""
