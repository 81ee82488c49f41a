"""Pictures of graphs, as SVG, without any other program."""
