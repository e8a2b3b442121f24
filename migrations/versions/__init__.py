"""The revisions, one numbered file each. A revision imports nothing of the package."""
