"""The migrations of flask-imcallback's tables."""
