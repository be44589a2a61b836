# SPDX-License-Identifier: Apache-2.0
"""Several boards at once: which ones (`pool`), images dealt to whichever is free (`dealing`), and labgrid's farms."""
