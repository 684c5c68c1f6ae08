"""The surveyed methods, one file each: what a method adds to the grammar, with its equations and their source."""
