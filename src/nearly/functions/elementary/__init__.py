"""Rules of the named functions: an enclosure of the value, and of the Taylor coefficients.

Every rule takes a ball and gives balls that contain the true number for *every* point of the
argument: over a wide ball the k-th coefficient bounds the Taylor remainder of order k. Where Arb
has no power series (Bessel, inverse erf, digamma, tanh, asinh …) the coefficients come from the
differential equation or from a formula for the derivatives. The forms are chosen so that the terms
have one sign where that is possible: then a wide argument does not blow up.
"""
