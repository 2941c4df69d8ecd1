"""Reports of a result: pages, figures, tables and model cards."""
