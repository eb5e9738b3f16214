"""Attacks, one file each; a new one registers itself with `@register_attack(name)`."""
