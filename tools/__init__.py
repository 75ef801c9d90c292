"""Scripts for a source tree: tables of the docs, races, experiments' records. Not shipped."""
