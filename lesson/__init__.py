"""Makes docs/lesson.md: claims of introductory lectures, measured with charrnn's commands."""
