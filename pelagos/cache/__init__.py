"""Memory of sequences: pages of rows shared by content, restart points, what is kept and what goes."""
