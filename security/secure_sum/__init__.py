"""The secure sum: double masking (Bonawitz et al. 2017) as two sans-I/O machines, `Member` and `Aggregator`.

DESIGN.md, "Secure sum", numbers the rules; the files here cite them as "rule N". docs/threat-model.md maps each rule to
the attack test that fails when its check is taken out.
"""
