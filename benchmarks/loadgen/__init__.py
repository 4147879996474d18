"""What the load generator and its report are made of: the client, the checks of streams, figures, tables, plots."""
