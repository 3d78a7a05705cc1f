"""What benchmarks/budget.py is made of: true scores kept on disk, strategies, tables, figures."""
