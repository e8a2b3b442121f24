"""`flask imcallback ...`, and `flask db ...` for an app that has no migrations of its own."""
