"""Suites (TOML), and the scripts that measure robustgen beside its peers with the results they stored."""
