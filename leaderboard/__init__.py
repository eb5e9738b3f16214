"""Published figures, result cards, and the tables and pages rendered from records."""
