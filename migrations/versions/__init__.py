"""One file a revision, numbered; none imports anything of the package."""
