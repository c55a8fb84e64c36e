"""What a profile needs before it runs, and what this machine lacks for it (`abp plan`)."""
