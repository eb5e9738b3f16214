"""Training of classifiers: methods, data, recipes, and a trainer that can be killed anywhere."""
