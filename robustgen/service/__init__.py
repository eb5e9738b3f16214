"""A classifier behind HTTP: the server, what watches its queries, and the client that attacks it."""
