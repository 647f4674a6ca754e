"""The real controller on virtual time, with modelled engines and a modelled learner."""
