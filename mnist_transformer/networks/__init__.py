"""Building blocks that know no data set and no model family."""
