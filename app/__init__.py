"""What a person sees: navigation, views, components. The only place that imports streamlit."""
