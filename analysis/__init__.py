"""What a run's results say: tables, figures, the report. Result files in, neither torch nor ray."""
