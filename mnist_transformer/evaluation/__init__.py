"""The evaluation protocol, its measures and the ledger of results."""
