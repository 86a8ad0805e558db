"""Do other engines' steps refine the idea of paged memory, and the policy they say they follow?"""
