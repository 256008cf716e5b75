"""The script that Streamlit runs, in a folder of its own, which Streamlit puts before all others on Python's path."""
