"""Methods that add a penalty to the objective."""

from moebench.methods.declaration import Declaration, Option, flag, weight

PENALISING = (
    Declaration(
        "load_error",
        "the load's error in the gradient of every token's logits (load-error injection)",
        "moebench.balance.penalized:LoadErrorInjection",
        {
            "weight": weight(1e-5, "lambda: of what is injected"),
            "tau": Option(1, "the largest error that is injected", above=0),
        },
        source="load-error injection",
        equation="∂/∂z += λ (tanh ξ / ξ) (u − 1), ξ = max \\|u − 1\\| / τ",
        tested="`test_penalties.py`: u = (2, 2, 0, 0) gives 0.7616",
    ),
    Declaration(
        "simbal",
        "routers with orthonormal rows (arXiv 2506.14038)",
        "moebench.balance.penalized:SimBal",
        {"weight": weight(0.01)},
        source="arXiv 2506.14038",
        equation="‖RᵀR − I‖₁",
        tested="`test_penalties.py`: a loop; 12 for 2 I of 4",
    ),
    Declaration(
        "orthogonality",
        "routers whose rows point apart (ERNIE 4.5)",
        "moebench.balance.penalized:RouterOrthogonality",
        {"weight": weight(0.01, source="ERNIE 4.5's code")},
        source="ERNIE 4.5's code",
        equation="mean (ŴᵀŴ − I)²",
        tested="`test_penalties.py`: 2/9 for two rows alike of three",
    ),
    Declaration(
        "specialize",
        "experts' outputs kept apart and scores that vary (arXiv 2505.22323)",
        "moebench.balance.penalized:Specialize",
        {
            "orthogonality": weight(1e-3, "beta: of the overlap of a token's experts"),
            "variance": weight(1e-3, "gamma: of the scores' variance"),
        },
        source="arXiv 2505.22323, Eq. 5-8",
        equation="β Σ ‖proj of x_j on x_k‖² − γ mean (s − s̄)²",
        tested="`test_penalties.py`: projections, the variance's gradient",
    ),
    Declaration(
        "remoe",
        "an L1 penalty of ReLU gates whose weight keeps top_k of them active (arXiv 2412.14711)",
        "moebench.balance.penalized:ReMoE",
        {
            "start": weight(1e-8, "lambda of the first step", source="thu-ml/ReMoE"),
            "factor": Option(
                1.2, "by which lambda grows or falls in a step", low=1, source="thu-ml/ReMoE"
            ),
            "top_k": Option("model.top_k", "active experts a token to aim for", low=1, whole=True),
        },
        gates=("relu",),
        source="arXiv 2412.14711, thu-ml/ReMoE",
        equation="λ mean u · ReLU(z), λ ← 1.2^±1 λ",
        tested="`test_penalties.py`, `test_penalized.py`",
    ),
    Declaration(
        "importance",
        "even sums of gate values, and of the odds to be selected (arXiv 1701.06538)",
        "moebench.balance.importance:Importance",
        {
            "importance": weight(0.1, "of the importance loss", source="arXiv 1701.06538"),
            "load": Option(
                0,
                "weight of the load loss; 0.1 in the source",
                low=0,
                needs="router.noise",
            ),
            "full": flag("sum the whole distribution, and not the top-k's gates", source="Tutel"),
            "balance_bsz": Option(
                "micro_bsz",
                "sequences in a group: the loss is the mean over groups of that of each",
                unit="sequences",
                low=1,
                whole=True,
                divides="global_bsz",
                whole_groups=True,
            ),
        },
        source="arXiv 1701.06538, Eq. 6-11; Tutel",
        equation="w CV²(Σ G) + w CV²(Σ P), P = Φ((z − the k-th of the others) / σ)",
        tested="`test_importance.py`: loops; (8, 0, 0, 0) gives 3",
    ),
    Declaration(
        "erc",
        "each expert answers its own router row most: expert-router coupling (arXiv 2512.23447)",
        "moebench.balance.coupling:Coupling",
        {
            "weight": weight(1, "of the coupling loss", source="arXiv 2512.23447"),
            "alpha": Option(
                1,
                "how strongly an expert may answer another's row, as a share of its own",
                low=0,
                source="arXiv 2512.23447: 1, or 0.5 with 256 experts",
            ),
        },
        forms=("linear",),
        source="arXiv 2512.23447",
        equation="E⁻² Σ_{i≠j} max(M_ij − α M_ii, 0) + max(M_ji − α M_ii, 0), M_ij = ‖R̃_i W_j‖",
        tested="`test_importance.py`: a loop; 0 for experts that read their own rows",
    ),
    Declaration(
        "snippet",
        "the loss of a snippet that circulates in web articles, made to run",
        "moebench.balance.snippet:Snippet",
        {
            "weight": weight(0.01, "of its loss"),
            "every": Option(128, "steps from one loss to the next", "steps", low=1, whole=True),
        },
        source="web articles",
        equation="see [Peers](#peers)",
        tested="`test_penalized.py`: a loop over six calls",
    ),
)
