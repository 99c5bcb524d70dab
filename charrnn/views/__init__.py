"""What was measured or happens, shown: in a terminal, as JSON, on a page."""
