"""`robustgen reproduce`: the tables of papers as experiments that run at the scale one can afford."""
