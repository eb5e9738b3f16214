"""Purification defences, one file each."""
