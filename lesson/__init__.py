"""Makes docs/lesson.md: what an introductory lecture claims, measured by charrnn's commands."""
