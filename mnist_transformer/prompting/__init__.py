"""Everything about sentences."""
