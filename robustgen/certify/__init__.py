"""Certificates: randomized smoothing, its statistics, and the tables that are made of them."""
