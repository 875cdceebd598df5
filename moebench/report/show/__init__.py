"""What a reader sees: tables and sentences as text, Markdown, LaTeX, HTML, JSON and CSV."""
