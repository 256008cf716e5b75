"""The web app: a model's predictions, heads and RoI layers, looked at in the browser.

What is computed and drawn is in modules without Streamlit (`inputs`, `models`, `drawing`, `roi_view`, `results`);
`views`, `overlay` and ``page/`` show it, and `serve` starts the server.
"""
