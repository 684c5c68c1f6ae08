"""Widgets: what a reader clicks. Every number they show comes from calls that a script can make too."""
