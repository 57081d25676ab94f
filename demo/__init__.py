"""The demo: a rendered clip whose truth is known, segmented and measured."""
