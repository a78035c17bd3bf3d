"""One module per contender; none is imported before its row runs."""
