"""Prefect tasks, one for each stage of a flow."""
