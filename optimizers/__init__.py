"""Compile the prompts of a `tpo_modules.TPOModule`, one at a time, the others frozen."""
