"""How would the engine's own planner, scheduler and flow do on machines that nobody here has? Boxes with a clock."""
