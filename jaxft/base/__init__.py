"""What every part but `jaxft.optim` may import; itself only the standard library."""
