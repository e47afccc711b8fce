"""Reports as HTML pages that need only a browser."""
