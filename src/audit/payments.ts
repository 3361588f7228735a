/** What must hold of payments: with their orders, with the money of wallets, and with their own history. */

/** By what they say; see invariants.ts. */
export const paymentInvariants: Readonly<Record<string, string>> = {
  "a paid order has exactly one completed payment, no other order has one": `
    select o.id::text from shop_order o
      left join payment p on p.order_id = o.id and p.state = 'COMPLETED' and p.amount = o.total and p.user_id = o.user_id
     group by o.id
    having count(p.id) <> case o.state when 'PAID' then 1 else 0 end`,

  "each payment belongs to an order, and holds its money as long as that is paid": `
    select p.id::text from payment p left join shop_order o on o.id = p.order_id
     where o.id is null or (p.state = 'COMPLETED' and o.state <> 'PAID')
        or p.refunded_amount <> case p.state when 'REFUNDED' then p.amount else 0 end
        or (p.state in ('REFUNDING', 'REFUNDED') and p.method = 'BALANCE' and o.state <> 'CANCELLED')`,

  "the gateway is asked about what it has to settle, and about nothing else": `
    select p.id::text from payment p
     where (p.state in ('PENDING', 'REFUNDING')) <> (p.next_try_time is not null)
        or (p.method = 'BALANCE' and p.state in ('PENDING', 'FAILED', 'REFUNDING'))`,

  "a payment from the wallet has one debit, and one credit when it was refunded": `
    select p.id::text from payment p left join ledger_entry l on l.user_id = p.user_id and l.reference = p.id::text
     where p.method = 'BALANCE' and p.amount > 0
     group by p.order_id, p.id
    having count(*) filter (where l.kind = 'PAYMENT' and l.amount = -p.amount) <> 1
        or count(*) filter (where l.kind = 'REFUND' and l.amount = p.amount)
           <> case p.state when 'REFUNDED' then 1 else 0 end
        or count(*) <> case p.state when 'REFUNDED' then 2 else 1 end`,

  "money leaves and returns for payments only": `
    select l.user_id || '/' || l.seq as id from ledger_entry l
     where l.kind <> 'CHARGE'
       and not exists (select 1 from payment p where p.id::text = l.reference and p.user_id = l.user_id)`,

  "the history of a payment is numbered without a gap and ends in its state": `
    select p.id::text from payment p left join payment_event e on e.order_id = p.order_id and e.payment_id = p.id
     group by p.order_id, p.id
    having count(e.seq) <> p.events or max(e.seq) <> p.events or min(e.seq) <> 1
        or (array_agg(e.state order by e.seq desc))[1] <> p.state
        or sum(e.amount) <> case when p.state in ('COMPLETED', 'REFUNDING') then p.amount else 0 end`,
};
