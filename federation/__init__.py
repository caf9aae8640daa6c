"""What coordinator and institutions must agree on, in numpy only: plan, schema, fixed point, DGB, PCW, the round."""
