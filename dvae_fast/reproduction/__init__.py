"""Published tables: their rows as configurations, their runs, and the table beside theirs."""
