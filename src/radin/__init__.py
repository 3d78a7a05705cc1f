"""Model soups within a budget of evaluations."""
