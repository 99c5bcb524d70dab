"""Makes docs/lesson.md: what introductory lectures claim, measured by charrnn's commands."""
