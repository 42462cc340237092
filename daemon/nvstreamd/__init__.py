"""What does the daemon decide? Everything that is policy: who may, which model, which budget."""
