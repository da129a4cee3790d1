"""report.html: an analysis as one page for people, offline, in which no row's text can act."""
