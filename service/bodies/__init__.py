"""Request bodies to arrays and results to answers, within limits and budgets."""
